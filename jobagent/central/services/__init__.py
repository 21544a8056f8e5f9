"""What runs on the central host: web server, tracker, seeder, and what they are told by the catalogue."""
