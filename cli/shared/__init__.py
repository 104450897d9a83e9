"""What several commands share: options, destinations, printing, errors."""
