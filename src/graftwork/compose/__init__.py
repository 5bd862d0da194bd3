"""graftwork.compose"""
