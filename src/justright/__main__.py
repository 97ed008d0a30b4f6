"""``python -m justright``."""

from justright.cli import main

if __name__ == "__main__":
    main()
