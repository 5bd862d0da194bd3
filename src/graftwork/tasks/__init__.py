"""graftwork.tasks"""
