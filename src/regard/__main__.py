"""`python -m regard`, where the script `regard` is not on the path."""

from regard.cli.main import main

if __name__ == "__main__":  # workers import it, too
    main()
