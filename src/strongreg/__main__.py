"""``python -m strongreg`` is the ``strongreg`` command."""

from strongreg.cli import main

if __name__ == "__main__":
    main()
