"""What lives inside vLLM: tap, selection, reduction, and the way of the masses to the front end."""
