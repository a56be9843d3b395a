"""Studies on real images: each a TOML file with its question and its cells; one engine runs, keeps and shows them."""
