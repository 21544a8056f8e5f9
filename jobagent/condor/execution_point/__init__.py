"""Where jobs run: hooks, transfer plugin, machine attributes, configuration and its doctor."""
