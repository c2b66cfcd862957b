"""The loops behind `Client.work` and `AsyncClient.work`."""
