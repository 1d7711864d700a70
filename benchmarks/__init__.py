"""What performance claims are measured with. Each module prints its figures; none is imported."""
