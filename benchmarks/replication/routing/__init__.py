"""Models served as one when nobody says which task an input belongs to: MASS, its routers, and its rivals."""
