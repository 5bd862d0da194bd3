"""graftwork.train"""
