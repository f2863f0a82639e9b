"""Published facts about recurrent networks, reproduced by one command."""
