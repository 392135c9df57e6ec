"""``python -m mbt_cli`` is ``mbt``, so that ``torchrun -m mbt_cli train ...`` starts it."""

import sys

from mbt_cli.main import main

sys.argv[0] = "mbt"
main()
