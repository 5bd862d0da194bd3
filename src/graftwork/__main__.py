"""`python -m graftwork`: the same as the `graftwork` command."""

from graftwork.cli.main import main

if __name__ == "__main__":
    main()
