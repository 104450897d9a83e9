"""The commands of `attrace`: one module a command. A command parses, calls the library and prints."""
