-- KEYS: 5 lock, 6 logins. ARGV: 3 owner, 4 life in ms to extend; 0: release; -1: release,
-- and the login never reached the upstream.
if redis.call('GET', KEYS[5]) ~= ARGV[3] then return {'lost'} end
local life = tonumber(ARGV[4])
if life > 0 then redis.call('PEXPIRE', KEYS[5], ARGV[4]) return {'ok'} end
if life < 0 then redis.call('RPOP', KEYS[6]) end
redis.call('DEL', KEYS[5])
return {'ok'}
