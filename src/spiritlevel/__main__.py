"""`python -m spiritlevel`: the same as `spiritlevel`, for launchers that start a module."""

from spiritlevel.cli.main import main

main()
