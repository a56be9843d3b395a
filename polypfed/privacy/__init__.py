"""Keeping a site's update private: clip, noise, compress, encrypt, mask; keys and the privacy ledger."""
