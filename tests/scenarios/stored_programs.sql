BEGIN TRANSACTION;
CREATE TABLE about (
	name VARCHAR NOT NULL, 
	value VARCHAR, 
	PRIMARY KEY (name)
);
INSERT INTO "about" VALUES('schema','1');
INSERT INTO "about" VALUES('id','store-m8j12kgfbgwar');
INSERT INTO "about" VALUES('owner','4');
CREATE TABLE decisions (
	id INTEGER NOT NULL, 
	program VARCHAR, 
	at FLOAT NOT NULL, 
	kind VARCHAR NOT NULL, 
	detail JSON NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "decisions" VALUES(1,'prog-m8j130w65nxfp',1.79590145731909751891e+09,'Admit','{}');
INSERT INTO "decisions" VALUES(2,'prog-m8j130w65nxfp',1.79590145751441431038e+09,'LeaseKV','{"engine": "engine-0", "conversation": "prog-m8j130w65nxfp:0", "ttl": 30.0, "value": 0.020199701462013508, "answer": "accepted", "tokens": 174}');
INSERT INTO "decisions" VALUES(3,'prog-m8j130w65nxfp',1.79590145767933821677e+09,'LeaseKV','{"engine": "engine-0", "conversation": "prog-m8j130w65nxfp:0", "ttl": 1.0, "value": 0.043286446283855404, "answer": "accepted", "tokens": 193}');
INSERT INTO "decisions" VALUES(4,'prog-m8j130w65nxfp',1.7959014578262636661e+09,'LeaseKV','{"engine": "engine-0", "conversation": "prog-m8j130w65nxfp:0", "ttl": 1.0, "value": 0.04621537684856886, "answer": "accepted", "tokens": 215}');
INSERT INTO "decisions" VALUES(5,'prog-m8j14fgfx7d37',1.79590150509495019917e+09,'Admit','{}');
INSERT INTO "decisions" VALUES(6,'prog-m8j14fgfx7d37',1.79590150546925115581e+09,'LeaseKV','{"engine": "engine-0", "conversation": "prog-m8j14fgfx7d37:0", "ttl": 1.0, "value": 0.10570033260187806, "answer": "accepted", "tokens": 174}');
INSERT INTO "decisions" VALUES(7,'prog-m8j14fgfx7d37',1.79590150589865422256e+09,'LeaseKV','{"engine": "engine-0", "conversation": "prog-m8j14fgfx7d37:0", "ttl": 1.0, "value": 0.10916778979552781, "answer": "accepted", "tokens": 193}');
INSERT INTO "decisions" VALUES(8,'prog-m8j15t38a0qgq',1.79590154874712038045e+09,'Admit','{}');
INSERT INTO "decisions" VALUES(9,'prog-m8j15t38a0qgq',1.79590154914634037019e+09,'LeaseKV','{"engine": "engine-0", "conversation": "prog-m8j15t38a0qgq:0", "ttl": 30.0, "value": 0.04395926187201819, "answer": "accepted", "tokens": 161}');
INSERT INTO "decisions" VALUES(10,'prog-m8j17c61q1125',1795901600.03513,'Admit','{}');
INSERT INTO "decisions" VALUES(11,'prog-m8j17c61q1125',1.79590160037069869036e+09,'LeaseKV','{"engine": "engine-0", "conversation": "prog-m8j17c61q1125:0", "ttl": 30.0, "value": 0.028362090017714153, "answer": "accepted", "tokens": 161}');
CREATE TABLE graphs (
	agent VARCHAR NOT NULL, 
	at FLOAT NOT NULL, 
	learned JSON NOT NULL, 
	PRIMARY KEY (agent)
);
INSERT INTO "graphs" VALUES('tally',1.79590145783758354191e+09,'{"edges": [["start", "tally:38", 1.0], ["tally:38", "tally:41", 1.0], ["tally:41", "tally:43", 1.0], ["tally:43", "end", 1.0]], "visits": {"start": 1.0, "tally:38": 1.0, "tally:41": 1.0, "tally:43": 1.0}, "forks": {}, "durations": {"*": {"94": 1.0, "112": 0.995}, "shell": {"94": 1.0, "112": 0.995}}, "contexts": [216], "services": [0.20910538400130463], "spans": [0.5178097970019735], "sizes": [[3, 216, 0.20910538400130463]], "look": [[0, 0.20910538400130463, 0.20910538400130463]], "told": [], "declared": {}, "calibrations": {"shell": {"returns": 1, "within_p50": 1, "within_p95": 1, "places": 0, "likeliest": 0, "chance": 0.0}}, "shared": 0, "step_seconds": 0.06970179466710154, "informed": false, "programs": 1, "errors": [0.0, 0.0], "usual_jct": 0.5178097970019735}');
INSERT INTO "graphs" VALUES('counting',1.79590154949636673928e+09,'{"edges": [["read", "write", 1.0], ["read:60", "end", 1.0], ["start", "read", 0.995], ["start", "read:60", 1.0], ["write", "end", 1.0]], "visits": {"read": 1.0, "start": 2.0, "write": 1.0, "read:60": 1.0}, "forks": {}, "durations": {}, "contexts": [162], "services": [0.17226002700044774], "spans": [0.7485093969989975], "sizes": [[1, 162, 0.17226002700044774]], "look": [[1, 0.17226002700044774, 0.17226002700044774]], "told": [[1, 0.17226002700044774, 1.0]], "declared": {"2": 0.5}, "calibrations": {}, "shared": 0, "step_seconds": 0.17226002700044774, "informed": false, "programs": 1, "errors": [0.0, 0.0], "usual_jct": 0.7485093969989975}');
CREATE TABLE leases (
	sandbox VARCHAR NOT NULL, 
	program VARCHAR NOT NULL, 
	env VARCHAR NOT NULL, 
	provider VARCHAR NOT NULL, 
	host VARCHAR NOT NULL, 
	created FLOAT NOT NULL, 
	PRIMARY KEY (sandbox)
);
CREATE TABLE lives (
	number BIGINT NOT NULL, 
	owner VARCHAR NOT NULL, 
	opened FLOAT NOT NULL, 
	alive FLOAT NOT NULL, 
	PRIMARY KEY (number)
);
INSERT INTO "lives" VALUES(1,'process 28795 on vm',1.79590144361514258389e+09,1.79590144361514258389e+09);
INSERT INTO "lives" VALUES(2,'process 28989 on vm',1.7959014752568001747e+09,1.79590150629459619521e+09);
INSERT INTO "lives" VALUES(3,'process 30375 on vm',1.79590152013651967047e+09,1.79590152013651967047e+09);
INSERT INTO "lives" VALUES(4,'process 30940 on vm',1.79590157173354721068e+09,1.79590157173354721068e+09);
CREATE TABLE programs (
	id VARCHAR NOT NULL, 
	agent VARCHAR NOT NULL, 
	entry VARCHAR NOT NULL, 
	arguments JSON NOT NULL, 
	options JSON NOT NULL, 
	status VARCHAR NOT NULL, 
	result JSON, 
	error TEXT, 
	created FLOAT NOT NULL, 
	started FLOAT, 
	ended FLOAT, 
	PRIMARY KEY (id)
);
INSERT INTO "programs" VALUES('prog-m8j130w65nxfp','tally','stored_agents:tally','{"args": [["harp", "piano"]], "kwargs": {}}','{"policy": "drawloom", "tenant": "default", "priority": 0, "model": "tinyagent", "sandbox": "none"}','done','"saved 9"',NULL,1.79590145728684878346e+09,1.79590145731916594508e+09,1.79590145781094217298e+09);
INSERT INTO "programs" VALUES('prog-m8j14fgfx7d37','tally','stored_agents:tally','{"args": [["harp", "piano"]], "kwargs": {}}','{"policy": "drawloom", "tenant": "default", "priority": 0, "model": "tinyagent", "sandbox": "none"}','running',NULL,NULL,1.79590150503943419453e+09,1.79590150509501838681e+09,NULL);
INSERT INTO "programs" VALUES('prog-m8j15t38a0qgq','counting','drawloom.runtime.graphs:graph:counting','{"args": [{"$": "data", "of": "State", "v": {"words": ["harp", "piano"], "total": 0}}], "kwargs": {}}','{"policy": "drawloom", "tenant": "default", "priority": 0, "model": "tinyagent", "sandbox": "none"}','done','{"words": ["harp", "piano"], "total": 9}',NULL,1.7959015486489744186e+09,1.79590154874718499183e+09,1.7959015494279272556e+09);
INSERT INTO "programs" VALUES('prog-m8j17c61q1125','counting','drawloom.runtime.graphs:graph:counting','{"args": [{"$": "data", "of": "State", "v": {"words": ["harp", "piano"], "total": 0}}], "kwargs": {}}','{"policy": "drawloom", "tenant": "default", "priority": 0, "model": "tinyagent", "sandbox": "none"}','running',NULL,NULL,1.79590159993755817419e+09,1.79590160003520035746e+09,NULL);
CREATE TABLE steps (
	program VARCHAR NOT NULL, 
	"key" VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	status VARCHAR NOT NULL, 
	started FLOAT NOT NULL, 
	ended FLOAT, 
	detail JSON NOT NULL, 
	PRIMARY KEY (program, "key")
);
INSERT INTO "steps" VALUES('prog-m8j130w65nxfp','0#0','llm','llm','done',1795901457.35176,1.79590145747854971884e+09,'{"conversation": "0", "state": "tally:38", "delta": [1, 414, 201, 399, 223, 413, 223, 390, 223, 271, 71, 223, 392, 84, 70, 16, 201, 760, 405, 286, 764, 310, 277, 310, 765, 261, 312, 764, 299, 87, 282, 277, 367, 764, 37, 338, 282, 223, 377, 223, 420, 86, 354, 223, 532, 223, 67, 223, 392, 84, 70, 345, 369, 765, 261, 370, 765, 261, 392, 84, 70, 765, 261, 286, 764, 407, 359, 371, 765, 346, 392, 84, 70, 365, 286, 764, 368, 412, 286, 764, 310, 277, 310, 765, 261, 312, 764, 85, 691, 277, 367, 764, 53, 691, 223, 67, 223, 437, 29, 223, 377, 223, 353, 69, 278, 85, 223, 70, 75, 278, 223, 74, 269, 71, 223, 89, 74, 381, 71, 223, 435, 223, 429, 223, 274, 78, 70, 223, 274, 345, 369, 765, 261, 370, 765, 261, 437, 765, 261, 286, 764, 362, 359, 371, 765, 346, 437, 365, 286, 764, 368, 358, 201, 761, 2, 201, 1, 334, 201, 53, 67, 91, 223, 91, 278, 16, 2, 201, 1, 337, 201], "output": [756, 762, 314, 763], "logprobs": [], "seed": 0, "text": "", "calls": [{"id": "NHKwzOPZY", "name": "shell", "arguments": {}, "raw": "{\"name\": \"shell\", \"arguments\": {\"", "error": "the call is not valid JSON: Unterminated string starting at: line 1 column 33 (char 32)"}], "finish": "length", "prompt": 171, "cached": 0, "times": {"submitted": 1795901457.3543608, "started": 1795901457.354395, "first": 1795901457.3938708, "finished": 1795901457.45925}}');
INSERT INTO "steps" VALUES('prog-m8j130w65nxfp','call1.0/0','tool','count','done',1.79590145750700163835e+09,1.79590145753860235214e+09,'{"arguments": {"word": "harp"}, "conversation": "", "value": {"$": "data", "of": "Count", "v": {"word": "harp", "letters": 4}}, "ok": true, "seconds": 0.0031764009981998242, "env_wait": 0.0}');
INSERT INTO "steps" VALUES('prog-m8j130w65nxfp','call1.1/0','tool','count','done',1.79590145750722932817e+09,1.79590145756281733516e+09,'{"arguments": {"word": "piano"}, "conversation": "", "value": {"$": "data", "of": "Count", "v": {"word": "piano", "letters": 5}}, "ok": true, "seconds": 0.0002628900001582224, "env_wait": 0.0}');
INSERT INTO "steps" VALUES('prog-m8j130w65nxfp','0#1','llm','llm','done',1.79590145759121799472e+09,1.79590145765049076075e+09,'{"conversation": "0", "state": "tally:41", "delta": [2, 201, 1, 334, 201, 35, 73, 67, 390, 16, 2, 201, 1, 337, 201], "output": [756, 762, 314, 763], "logprobs": [], "seed": 0, "text": "", "calls": [{"id": "09xNmfufK", "name": "shell", "arguments": {}, "raw": "{\"name\": \"shell\", \"arguments\": {\"", "error": "the call is not valid JSON: Unterminated string starting at: line 1 column 33 (char 32)"}], "finish": "length", "prompt": 190, "cached": 174, "times": {"submitted": 1795901457.5971854, "started": 1795901457.5972188, "first": 1795901457.5994937, "finished": 1795901457.6434696}}');
INSERT INTO "steps" VALUES('prog-m8j130w65nxfp','call2','tool','save','done',1.79590145767895627022e+09,1.7959014576864445209e+09,'{"arguments": {"total": 9}, "conversation": "", "value": "saved 9", "ok": true, "seconds": 0.0002468860002409201, "env_wait": 0.0}');
INSERT INTO "steps" VALUES('prog-m8j130w65nxfp','0#2','llm','llm','done',1.79590145771903634064e+09,1795901457.80254,'{"conversation": "0", "state": "tally:43", "delta": [2, 201, 1, 334, 201, 49, 80, 622, 223, 79, 81, 301, 16, 2, 201, 1, 337, 201], "output": [756, 762, 314, 763], "logprobs": [], "seed": 0, "text": "", "calls": [{"id": "DAeIDNyvj", "name": "shell", "arguments": {}, "raw": "{\"name\": \"shell\", \"arguments\": {\"", "error": "the call is not valid JSON: Unterminated string starting at: line 1 column 33 (char 32)"}], "finish": "length", "prompt": 212, "cached": 193, "times": {"submitted": 1795901457.719593, "started": 1795901457.719614, "first": 1795901457.7220302, "finished": 1795901457.7776136}}');
INSERT INTO "steps" VALUES('prog-m8j14fgfx7d37','0#0','llm','llm','done',1.79590150513693976399e+09,1.79590150537208247181e+09,'{"conversation": "0", "state": "tally:38", "delta": [1, 414, 201, 399, 223, 413, 223, 390, 223, 271, 71, 223, 392, 84, 70, 16, 201, 760, 405, 286, 764, 310, 277, 310, 765, 261, 312, 764, 299, 87, 282, 277, 367, 764, 37, 338, 282, 223, 377, 223, 420, 86, 354, 223, 532, 223, 67, 223, 392, 84, 70, 345, 369, 765, 261, 370, 765, 261, 392, 84, 70, 765, 261, 286, 764, 407, 359, 371, 765, 346, 392, 84, 70, 365, 286, 764, 368, 412, 286, 764, 310, 277, 310, 765, 261, 312, 764, 85, 691, 277, 367, 764, 53, 691, 223, 67, 223, 437, 29, 223, 377, 223, 353, 69, 278, 85, 223, 70, 75, 278, 223, 74, 269, 71, 223, 89, 74, 381, 71, 223, 435, 223, 429, 223, 274, 78, 70, 223, 274, 345, 369, 765, 261, 370, 765, 261, 437, 765, 261, 286, 764, 362, 359, 371, 765, 346, 437, 365, 286, 764, 368, 358, 201, 761, 2, 201, 1, 334, 201, 53, 67, 91, 223, 91, 278, 16, 2, 201, 1, 337, 201], "output": [756, 762, 314, 763], "logprobs": [], "seed": 0, "text": "", "calls": [{"id": "NHKwzOPZY", "name": "shell", "arguments": {}, "raw": "{\"name\": \"shell\", \"arguments\": {\"", "error": "the call is not valid JSON: Unterminated string starting at: line 1 column 33 (char 32)"}], "finish": "length", "prompt": 171, "cached": 0, "times": {"submitted": 1795901505.1556938, "started": 1795901505.1557388, "first": 1795901505.2590232, "finished": 1795901505.3561506}}');
INSERT INTO "steps" VALUES('prog-m8j14fgfx7d37','call1.0/0','tool','count','done',1.79590150541925835611e+09,1.79590150551521134372e+09,'{"arguments": {"word": "harp"}, "conversation": "", "value": {"$": "data", "of": "Count", "v": {"word": "harp", "letters": 4}}, "ok": true, "seconds": 0.0005186490016058087, "env_wait": 0.0}');
INSERT INTO "steps" VALUES('prog-m8j14fgfx7d37','call1.1/0','tool','count','done',1.7959015054264652729e+09,1.79590150558753561976e+09,'{"arguments": {"word": "piano"}, "conversation": "", "value": {"$": "data", "of": "Count", "v": {"word": "piano", "letters": 5}}, "ok": true, "seconds": 0.0002213279985880945, "env_wait": 0.0}');
INSERT INTO "steps" VALUES('prog-m8j14fgfx7d37','0#1','llm','llm','done',1.7959015056563432216e+09,1.79590150577849698063e+09,'{"conversation": "0", "state": "tally:41", "delta": [2, 201, 1, 334, 201, 35, 73, 67, 390, 16, 2, 201, 1, 337, 201], "output": [756, 762, 314, 763], "logprobs": [], "seed": 0, "text": "", "calls": [{"id": "09xNmfufK", "name": "shell", "arguments": {}, "raw": "{\"name\": \"shell\", \"arguments\": {\"", "error": "the call is not valid JSON: Unterminated string starting at: line 1 column 33 (char 32)"}], "finish": "length", "prompt": 190, "cached": 174, "times": {"submitted": 1795901505.6783597, "started": 1795901505.6784217, "first": 1795901505.6805074, "finished": 1795901505.7749398}}');
INSERT INTO "steps" VALUES('prog-m8j14fgfx7d37','call2','tool','save','intent',1.7959015058629767895e+09,NULL,'{"arguments": {"total": 9}, "conversation": ""}');
INSERT INTO "steps" VALUES('prog-m8j15t38a0qgq','0#0','llm','llm','done',1.79590154882847881315e+09,1795901549.05725,'{"conversation": "0", "state": "read:60", "delta": [1, 414, 201, 201, 760, 405, 286, 764, 310, 277, 310, 765, 261, 312, 764, 299, 87, 282, 277, 367, 764, 37, 338, 282, 223, 377, 223, 420, 86, 354, 223, 532, 223, 67, 223, 392, 84, 70, 345, 369, 765, 261, 370, 765, 261, 392, 84, 70, 765, 261, 286, 764, 407, 359, 371, 765, 346, 392, 84, 70, 365, 286, 764, 368, 412, 286, 764, 310, 277, 310, 765, 261, 312, 764, 85, 691, 277, 367, 764, 53, 691, 223, 67, 223, 437, 29, 223, 377, 223, 353, 69, 278, 85, 223, 70, 75, 278, 223, 74, 269, 71, 223, 89, 74, 381, 71, 223, 435, 223, 429, 223, 274, 78, 70, 223, 274, 345, 369, 765, 261, 370, 765, 261, 437, 765, 261, 286, 764, 362, 359, 371, 765, 346, 437, 365, 286, 764, 368, 358, 201, 761, 2, 201, 1, 334, 201, 53, 67, 91, 223, 91, 278, 16, 2, 201, 1, 337, 201], "output": [756, 762, 314, 763], "logprobs": [], "seed": 0, "text": "", "calls": [{"id": "NHKwzOPZY", "name": "shell", "arguments": {}, "raw": "{\"name\": \"shell\", \"arguments\": {\"", "error": "the call is not valid JSON: Unterminated string starting at: line 1 column 33 (char 32)"}], "finish": "length", "prompt": 158, "cached": 0, "times": {"submitted": 1795901548.8825657, "started": 1795901548.8826177, "first": 1795901548.9683654, "finished": 1795901549.0548778}}');
INSERT INTO "steps" VALUES('prog-m8j15t38a0qgq','call1','tool','count','done',1.79590154911967849731e+09,1.79590154917773079873e+09,'{"arguments": {"word": "harp"}, "conversation": "", "value": {"$": "data", "of": "Count", "v": {"word": "harp", "letters": 4}}, "ok": true, "seconds": 0.0005805410000903066, "env_wait": 0.0}');
INSERT INTO "steps" VALUES('prog-m8j15t38a0qgq','call2','tool','count','done',1795901549.25469,1.79590154928301572795e+09,'{"arguments": {"word": "piano"}, "conversation": "", "value": {"$": "data", "of": "Count", "v": {"word": "piano", "letters": 5}}, "ok": true, "seconds": 0.00027818200032925233, "env_wait": 0.0}');
INSERT INTO "steps" VALUES('prog-m8j15t38a0qgq','call3','tool','save','done',1.79590154932463979715e+09,1.79590154939232039452e+09,'{"arguments": {"total": 9}, "conversation": "", "value": "saved 9", "ok": true, "seconds": 0.0002581629996711854, "env_wait": 0.0}');
INSERT INTO "steps" VALUES('prog-m8j17c61q1125','0#0','llm','llm','done',1.79590160009268879886e+09,1.79590160030663132662e+09,'{"conversation": "0", "state": "read:60", "delta": [1, 414, 201, 201, 760, 405, 286, 764, 310, 277, 310, 765, 261, 312, 764, 299, 87, 282, 277, 367, 764, 37, 338, 282, 223, 377, 223, 420, 86, 354, 223, 532, 223, 67, 223, 392, 84, 70, 345, 369, 765, 261, 370, 765, 261, 392, 84, 70, 765, 261, 286, 764, 407, 359, 371, 765, 346, 392, 84, 70, 365, 286, 764, 368, 412, 286, 764, 310, 277, 310, 765, 261, 312, 764, 85, 691, 277, 367, 764, 53, 691, 223, 67, 223, 437, 29, 223, 377, 223, 353, 69, 278, 85, 223, 70, 75, 278, 223, 74, 269, 71, 223, 89, 74, 381, 71, 223, 435, 223, 429, 223, 274, 78, 70, 223, 274, 345, 369, 765, 261, 370, 765, 261, 437, 765, 261, 286, 764, 362, 359, 371, 765, 346, 437, 365, 286, 764, 368, 358, 201, 761, 2, 201, 1, 334, 201, 53, 67, 91, 223, 91, 278, 16, 2, 201, 1, 337, 201], "output": [756, 762, 314, 763], "logprobs": [], "seed": 0, "text": "", "calls": [{"id": "NHKwzOPZY", "name": "shell", "arguments": {}, "raw": "{\"name\": \"shell\", \"arguments\": {\"", "error": "the call is not valid JSON: Unterminated string starting at: line 1 column 33 (char 32)"}], "finish": "length", "prompt": 158, "cached": 0, "times": {"submitted": 1795901600.1225314, "started": 1795901600.122589, "first": 1795901600.1779127, "finished": 1795901600.2890263}}');
INSERT INTO "steps" VALUES('prog-m8j17c61q1125','call1','tool','count','done',1.79590160034338617318e+09,1.79590160043503451348e+09,'{"arguments": {"word": "harp"}, "conversation": "", "value": {"$": "data", "of": "Count", "v": {"word": "harp", "letters": 4}}, "ok": true, "seconds": 0.03631968699846766, "env_wait": 0.0}');
INSERT INTO "steps" VALUES('prog-m8j17c61q1125','call2','tool','count','done',1.79590160050280618665e+09,1.79590160056602501873e+09,'{"arguments": {"word": "piano"}, "conversation": "", "value": {"$": "data", "of": "Count", "v": {"word": "piano", "letters": 5}}, "ok": true, "seconds": 0.00026043700199807063, "env_wait": 0.0}');
INSERT INTO "steps" VALUES('prog-m8j17c61q1125','call3','tool','save','intent',1.79590160061660242081e+09,NULL,'{"arguments": {"total": 9}, "conversation": ""}');
CREATE INDEX ix_programs_status ON programs (status);
CREATE INDEX ix_decisions_program ON decisions (program);
CREATE INDEX ix_leases_program ON leases (program);
COMMIT;
