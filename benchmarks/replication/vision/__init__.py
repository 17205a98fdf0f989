"""Images: tasks of small pictures on a vision transformer that was pretrained on formulas only."""
