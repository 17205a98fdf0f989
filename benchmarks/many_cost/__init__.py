"""What it costs to add a task to a state (`submerge many`), and to export the merge."""
