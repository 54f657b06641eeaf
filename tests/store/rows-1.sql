-- Rows of a store of schema 1: two models, an alias that moved, a deployment, events
INSERT INTO migrations VALUES (1, 'first', 1700000000.0);
INSERT INTO versions VALUES ('fraud', '1111111111111111111111111111111111111111111111111111111111111111', 1700000001.0, 'ana', 'fraud.onnx', 1000, '', '', '', '{}');
INSERT INTO versions VALUES ('fraud', '2222222222222222222222222222222222222222222222222222222222222222', 1700000002.0, 'bob', 'fraud2.onnx', 500, '1111111111111111111111111111111111111111111111111111111111111111', 'int8', 'AVX-512', '{"auc":0.93}');
INSERT INTO versions VALUES ('churn', '3333333333333333333333333333333333333333333333333333333333333333', 1700000003.0, 'ana', '', 10, '', '', '', '{}');
INSERT INTO aliases VALUES ('fraud', 'champion', '2222222222222222222222222222222222222222222222222222222222222222', 2);
INSERT INTO alias_history (name, alias, revision, from_version, to_version, at, actor, why, evidence) VALUES ('fraud', 'champion', 1, '', '1111111111111111111111111111111111111111111111111111111111111111', 1700000004.0, 'ana', 'first', '{}');
INSERT INTO alias_history (name, alias, revision, from_version, to_version, at, actor, why, evidence) VALUES ('fraud', 'champion', 2, '1111111111111111111111111111111111111111111111111111111111111111', '2222222222222222222222222222222222222222222222222222222222222222', 1700000005.0, 'bob', 'better', '{"auc":0.93}');
INSERT INTO deployments VALUES ('fraud', 2, '{"name":"fraud","revision":2,"version":"2222222222222222222222222222222222222222222222222222222222222222","previous":"1111111111111111111111111111111111111111111111111111111111111111"}');
INSERT INTO deployment_history (name, revision, spec, at, actor, action, why) VALUES ('fraud', 1, '{"name":"fraud","revision":1,"version":"1111111111111111111111111111111111111111111111111111111111111111"}', 1700000004.0, 'ana', 'deploy', '');
INSERT INTO deployment_history (name, revision, spec, at, actor, action, why) VALUES ('fraud', 2, '{"name":"fraud","revision":2,"version":"2222222222222222222222222222222222222222222222222222222222222222","previous":"1111111111111111111111111111111111111111111111111111111111111111"}', 1700000005.0, 'bob', 'deploy', 'better');
INSERT INTO events (at, actor, action, name, details) VALUES (1700000004.0, 'ana', 'deploy', 'fraud', '{"revision":1}');
INSERT INTO events (at, actor, action, name, details) VALUES (1700000005.0, 'bob', 'deploy', 'fraud', '{"revision":2}');
