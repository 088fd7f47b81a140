"""``python -m training.cli`` is ``hqtl-train``."""

from training.cli import main

if __name__ == "__main__":
    main(prog_name="hqtl-train")
