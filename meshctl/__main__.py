"""`python -m meshctl` is `meshctl`."""

from meshctl.cli.main import main

main()
