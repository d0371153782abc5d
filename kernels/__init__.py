"""The operations on the record: naive references and the fast versions held to them."""
