"""The command line: `submerge merge | plan | explain | methods | verify`."""

from submerge.cli._app import main

__all__ = ["main"]
