"""What MASS costs where it serves: latency beside one model and the dense way, storage, compression."""
