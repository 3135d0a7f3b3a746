"""What comes after supervised fine-tuning: preference losses and their reference."""
