-- When was the test split opened, for which arms and by which selection? One row per opening and arm.
SELECT study, opening, arm, min(opened_at) AS opened_at, count(*) AS runs, any_value(selection) AS selection
FROM test_openings
GROUP BY study, opening, arm
ORDER BY study, opening, arm
