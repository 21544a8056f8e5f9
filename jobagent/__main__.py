"""`python -m jobagent` is the `jobagent` command."""

from jobagent.cli.main import entry

if __name__ == "__main__":
    entry()
