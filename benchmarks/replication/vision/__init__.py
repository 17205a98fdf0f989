"""Images: tasks of small pictures on a vision transformer that has seen formulas only."""
