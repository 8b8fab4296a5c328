import sys

from seqkit.kernels.bench.command import main

if __name__ == "__main__":
    sys.exit(main())
