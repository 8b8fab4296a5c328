"""What a language model of DNA is asked: the next base, or bases that were hidden.

Legend: B batch, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from seqkit.backbones.loss import IGNORED
from seqkit.errors import ConfigError
from seqkit.tokenizers.dna import Token

OBJECTIVES = ("causal", "masked")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The question and how answers count.

    Attributes:
        name: causal (the next base; needs a causal backbone) or masked (hidden bases, both sides seen).
        soft_mask_weight: Weight of soft-masked bases (repeats) in the training loss, 0 to 1; measurements count every
            base alike.
        mask_rate: Share of the known bases that a masked model has to tell.
        mask_token: Share of those shown as the mask token.
        mask_random: Share of those shown as a base drawn at random; the rest is shown as it is.
    """

    name: str = "causal"
    soft_mask_weight: float = 1.0
    mask_rate: float = 0.15
    mask_token: float = 0.8
    mask_random: float = 0.1

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise ConfigError("objective.name", expected=" or ".join(OBJECTIVES), got=repr(self.name))
        if not 0 <= self.soft_mask_weight <= 1:
            raise ConfigError("objective.soft_mask_weight", expected="0 to 1", got=str(self.soft_mask_weight))
        if not 0 < self.mask_rate < 1:
            raise ConfigError("objective.mask_rate", expected="a share between 0 and 1", got=str(self.mask_rate))
        if min(self.mask_token, self.mask_random) < 0 or self.mask_token + self.mask_random > 1:
            raise ConfigError("objective.mask_token", expected="shares of at most 1 with mask_random",
                              got=f"{self.mask_token} and {self.mask_random}")  # fmt: skip

    @property
    def is_causal(self) -> bool:
        """Whether the next base is asked for."""
        return self.name == "causal"


class Question(NamedTuple):
    """One batch as a model sees it.

    Attributes:
        input_BL: Token ids shown.
        target_BL: int64 token ids asked for; -100 where nothing is.
        weight_BL: float32 weight of each answer, or None where all count alike.
    """

    input_BL: Tensor
    target_BL: Tensor
    weight_BL: Tensor | None


def ask(objective: ObjectiveConfig, ids: Tensor, soft: Tensor | None, generator: torch.Generator) -> Question:
    """Make the question of a batch.

    Args:
        objective: Which one.
        ids: uint8 token ids: (B, L + 1) for a causal objective, (B, L) for a masked one.
        soft: Soft mask of the same shape, or None.
        generator: Chooses what is hidden; on the device of ``ids``.
    """
    known = (ids >= Token.A) & (ids <= Token.T)
    if objective.is_causal:
        shown, asked, known = ids[:, :-1], ids[:, 1:], known[:, 1:]
        soft = None if soft is None else soft[:, 1:]
    else:
        chance = torch.rand(ids.shape, device=ids.device, generator=generator)
        known = known & (chance < objective.mask_rate)
        shown, asked = hide(objective, ids, known, chance / objective.mask_rate, generator), ids
    target_BL = torch.where(known, asked.long(), IGNORED)
    if soft is None or objective.soft_mask_weight == 1:
        return Question(shown, target_BL, None)
    return Question(shown, target_BL, torch.where(soft, objective.soft_mask_weight, 1.0))


def hide(
    objective: ObjectiveConfig, ids_BL: Tensor, asked_BL: Tensor, chance_BL: Tensor, generator: torch.Generator
) -> Tensor:
    """Replace bases that are asked for: most by the mask token, some by a random base, which is never a special token.

    Args:
        objective: Shares of the three.
        ids_BL: Token ids.
        asked_BL: True where a base is asked for.
        chance_BL: Uniform in [0, 1) where ``asked_BL``.
        generator: Draws the random bases.
    """
    drawn_BL = torch.randint(
        int(Token.A), int(Token.T) + 1, ids_BL.shape, device=ids_BL.device, generator=generator, dtype=torch.uint8
    )
    random_BL = asked_BL & (chance_BL >= objective.mask_token)
    random_BL &= chance_BL < objective.mask_token + objective.mask_random
    hidden_BL = torch.where(random_BL, drawn_BL, ids_BL)
    return hidden_BL.masked_fill(asked_BL & (chance_BL < objective.mask_token), int(Token.MASK))
