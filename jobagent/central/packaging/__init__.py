"""Software of any origin → archives, torrents and bills of materials."""
