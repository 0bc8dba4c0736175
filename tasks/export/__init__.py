"""Take the result away: model card, merged checkpoint, other tools' configuration."""
