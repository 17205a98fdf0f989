"""The command line: `submerge merge | calibrate | plan | explain | export | methods | route | verify`."""

from submerge.cli._app import main

__all__ = ["main"]
