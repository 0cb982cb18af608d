"""`python -m llmkit`, and `accelerate launch -m llmkit run RECIPE`."""

from llmkit.cli.main import main

if __name__ == "__main__":
    main()
