"""Rules that need nothing but values: who needs which right, when schedules are due, where topics lead."""
