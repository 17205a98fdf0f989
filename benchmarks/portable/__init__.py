"""The bytes of merges under other settings of the same machine, and on other machines."""
