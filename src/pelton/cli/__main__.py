import sys

from pelton.cli import main

sys.exit(main())
