"""Replication: fine-tunes of real tasks, merged by every method under the same rules."""
