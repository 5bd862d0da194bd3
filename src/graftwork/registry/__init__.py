"""graftwork.registry"""
