"""Requests and answers: who asks, whether they may, errors, and the routes that every gateway has."""
