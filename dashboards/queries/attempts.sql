-- Which orders were started more than once, and why? No row means that nothing was ever interrupted.
SELECT study, order_id, count(*) AS attempts, count(*) FILTER (outcome = 'complete') AS complete, max(error) AS error
FROM attempts
GROUP BY study, order_id
HAVING count(*) > 1
ORDER BY study, order_id
