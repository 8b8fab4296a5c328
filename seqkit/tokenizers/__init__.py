"""Text and numbers to model input."""

from seqkit.tokenizers.base import Tokenizer
from seqkit.tokenizers.dna import AMBIGUITY_CODES, GAP, DNATokenizer, Token

__all__ = ["AMBIGUITY_CODES", "GAP", "DNATokenizer", "Token", "Tokenizer"]
