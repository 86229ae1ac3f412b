"""`python -m scoreflow`."""

from scoreflow.cli import main

if __name__ == "__main__":
    main()
