"""Methods on singular vectors: whole merges, and single matrices beside plain decompositions."""
