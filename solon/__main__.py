"""`python -m solon`."""

from solon.cli.main import main

if __name__ == "__main__":
    main()
