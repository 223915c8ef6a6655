"""For other libraries: each file plugs into one, which it imports, so nothing else imports these."""
