"""`python -m solon`."""

import sys

if __name__ == "__main__":
    # Python put the current folder first. Unless Solon lies in it, nothing there is for us, and the next import would
    # look there.
    if not sys.flags.safe_path and not __file__.startswith(f"{sys.path[0]}/solon/"):
        del sys.path[0]

    from solon.cli.main import main

    main()
