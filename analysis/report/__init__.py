"""An interactive report of a trace: one HTML file that needs neither a server nor a network."""
